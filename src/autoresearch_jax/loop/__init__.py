"""Who proposes, measures and decides, and when."""
