"""Document classes as data: fields, Meta, indexes and names of fields, without any reading or writing."""
