"""Services of the operating system: files that are complete or absent, signals, locks, threads, processes, memory."""
