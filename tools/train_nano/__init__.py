"""Trains and exports the embedded nano models; a development tool, never imported by the package."""
