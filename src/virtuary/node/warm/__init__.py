"""Warm templates: made from images, kept within a budget, resumed as servers."""
