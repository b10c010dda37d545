"""Mango, CouchDB's query language, as pure functions over decoded JSON.

============  ====================================================================================
``collate``   the order of JSON values: ``compare``, ``key`` for sorting, ``comparer`` for loops
``regex``     ``compile_regex``: a pattern becomes a predicate over strings, by RE2
``selector``  ``compile``: a selector object becomes a predicate over documents
============  ====================================================================================

No I/O, no clock, no state between calls: the same selector gives the same answer on every node.
"""
