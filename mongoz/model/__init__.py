"""Describes document classes: fields, Meta, indexes and field names. It neither reads nor writes documents."""
