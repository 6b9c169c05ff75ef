"""What every pass keeps: the specification of canonical programs, and the runner that verifies it."""
