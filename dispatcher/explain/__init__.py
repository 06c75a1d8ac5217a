"""Explains what happened to the changes of a document: why did a receiver not run?"""
