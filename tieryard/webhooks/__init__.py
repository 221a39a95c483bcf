"""Telling those who asked: signed (Standard Webhooks), to a public address and nowhere else, again until it is taken.

`addresses` says where deliveries may go, `payloads` what they say, `signing` how a receiver knows them, `sending` makes
one attempt, `backoff` says when the next one is due, and `fairness` whose turn it is.
"""
