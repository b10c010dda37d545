"""Requests in: routes by noun, and the wire formats of the CouchDB API.

The way of a request:
    protocol       uvicorn's protocol with our bounds, and the fast lane in it
    door           the clients' port of this process, open or closed
    lane           plain reads and writes of one document, without a task or a framework
    tokens         session tokens on the fast lane, looked at once
    app            CORS, who is asking, which route, errors: the way of every other request
    peer_lane      heartbeats and forwarded writes of other nodes
    cors           cross-origin requests
    authenticator  who is asking: headers and cookies to users
    standing       what answers say of the session, and of the age of the view
    forward        requests that another node answers better
    elsewhere      attachments whose bytes are not here yet
    services       the parts of the node that handlers work with
    call           one request: its parameters, body, user and database
    parameters     values of parameters that listings and views share
    respond        answers as CouchDB gives them

Routes:
    info           /, _up, _all_dbs, _uuids, _node/…, what a server says of itself
    session        _session
    databases      /{db}, its settings, _revs_diff and _missing_revs
    documents      /{db}/{doc}
    attachments    /{db}/{doc}/{attachment}
    bulk           _bulk_docs, _bulk_get
    listing        _all_docs, _design_docs, _local_docs
    divan          /{db}/_divan/…, what CouchDB does not have
    cluster        /_divan/…, what nodes and operators ask of a node
    verify         /_divan/proof and /_divan/verify, whether nodes hold the same
    snapshots      /_divan/snapshot, a copy of the file for other nodes
    changes        _changes: what is asked for
    find           _find, _explain, _index
    views          _view, _info, _view_cleanup
    functions      _update, and what a function is told of a request; filter functions
    replicate      _replicate, _scheduler/…, replications that nodes run
    feed           _changes: how it is sent, live or not

Wire formats:
    render         one revision as JSON, with what was asked for besides
    pieces         long answers from short reads
    related        multipart bodies in and out
    multipart, negotiate, ranges      pure parsing and framing
"""
