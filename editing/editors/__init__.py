"""Editors: one method, one package."""
