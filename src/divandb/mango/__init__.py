"""Mango, CouchDB's query language, as pure functions over decoded JSON.

============  ====================================================================================
``collate``   the order of JSON values: ``compare``, ``key`` for sorting, ``comparer`` for loops
``regex``     ``compile_regex``: a pattern becomes a predicate over strings, by RE2
``tree``      ``parse``: a selector object becomes a tree
``selector``  ``compile``: a selector, or its tree, becomes a predicate over documents
``sift``      a selector as SQL, true at least wherever the predicate is
``keys``      JSON values as bytes that have the values' order
``index``     indexes as design documents hold them
``options``   the bodies of ``_find`` and ``_index``, checked
``plan``      which index answers a query, and which part of it is read
============  ====================================================================================

No I/O, no clock, no state between calls: the same selector gives the same answer on every node.
"""
