"""Systems: clients that are slow, small or away: asynchronous servers, sub-models, resource-aware work."""
