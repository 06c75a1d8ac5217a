"""Explains what became of the changes of a document: why did a receiver not run?"""
