"""What is known of a program before it is rewritten: axes, blocks, costs, and what an extract holds."""
