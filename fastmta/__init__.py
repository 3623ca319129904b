"""fastmta: a mail transfer agent in Python and Cython."""
