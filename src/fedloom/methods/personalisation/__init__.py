"""Personalisation: every client ends with a model of its own, better than alone and better than one for all."""
