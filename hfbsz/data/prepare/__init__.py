"""Preparation: documents and examples become rows in Arrow files."""
