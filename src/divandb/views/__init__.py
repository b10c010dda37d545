"""Functions in design documents: JavaScript that maps, reduces, filters, validates and updates.

    worker        the process that runs them, which reaches nothing; program.js is its other half
    engine        asks a worker: bounded in time and memory
    design        what a design document holds: views with their signature, functions
    form          the types that members of a design document must have
    raw           keys in the order of Erlang's terms
    query         the parameters of a view's query, checked
    ranges        keys as ranges of an index
    reduce        `_sum`, `_count`, `_stats`, `_approx_count_distinct`

All but ``worker`` and ``engine`` are pure. Who keeps views is `indexer`, who queries them `viewer`.
"""
