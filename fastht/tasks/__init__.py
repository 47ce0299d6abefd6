"""What adapters are for: training and evaluating them on ultrasound."""
