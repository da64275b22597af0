"""From stored pictures and captions to what the network is shown."""
