"""What happens to a unit, in which order, and what is remembered. Hardware is met only through `hal`."""
