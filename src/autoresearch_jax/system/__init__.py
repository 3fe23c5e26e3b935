"""The operating system and the hardware: processes, signals, locks, disks, devices."""
