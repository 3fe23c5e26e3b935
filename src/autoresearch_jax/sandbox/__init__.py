"""What a process may touch: isolation levels and the profile of each kind of process."""
