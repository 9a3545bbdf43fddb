"""Threads against processes on the user's own model."""
