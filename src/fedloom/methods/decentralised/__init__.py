"""Decentralised: no server in the middle; clients average with their neighbours in a graph."""
