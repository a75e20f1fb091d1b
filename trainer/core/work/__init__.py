"""Threads, processes and the progress of long work. Imports devices and errors of core."""
