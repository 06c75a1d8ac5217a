"""What a document class is: fields, Meta, indexes and names, without any reading or writing."""
