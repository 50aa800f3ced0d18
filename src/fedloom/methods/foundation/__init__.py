"""Foundation models: a large frozen base, and little that is trained and sent."""
