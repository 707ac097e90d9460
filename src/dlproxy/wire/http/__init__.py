"""HTTP/1.1 at the edge: connections, exchanges, routes, codings, and the document that describes them."""
