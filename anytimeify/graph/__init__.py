"""Building graphs and walking through them."""
