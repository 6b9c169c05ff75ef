"""What training loops of anytime models are made of."""

from anytimeify.train.orders import OneAfterTheOther, Order, Part, Sandwich, Together

__all__ = ["OneAfterTheOther", "Order", "Part", "Sandwich", "Together"]
