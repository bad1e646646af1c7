"""One thin module per cloud product over its official SDK: typed values in and out, one error classifier."""
