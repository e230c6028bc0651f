"""How requests come in, one file or folder each. A transport translates; the answers are the gateway's."""
