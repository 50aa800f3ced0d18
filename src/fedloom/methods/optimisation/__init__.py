"""Optimisation: how local work is corrected, weighted and combined into one better global model."""
