----------------------------- MODULE TraceData -----------------------------
(* An example of what a run generates: a call goes by way of the giver, the *)
(* next one does not, and the last one comes after a revocation.            *)
EXTENDS Naturals, Sequences

Traces == << <<
    [event |-> "settle"],
    [event |-> "call", n |-> 1],
    [event |-> "deposit", t |-> 1],
    [event |-> "forward", n |-> 1],
    [event |-> "deposited", t |-> 1],
    [event |-> "proxied", n |-> 1, took |-> TRUE],
    [event |-> "offer", t |-> 1],
    [event |-> "stranger", t |-> 1],
    [event |-> "withdraw", t |-> 1],
    [event |-> "granted", t |-> 1],
    [event |-> "withdrawn"],
    [event |-> "forward_flush", t |-> 1],
    [event |-> "flushed", t |-> 1],
    [event |-> "go_direct"],
    [event |-> "call", n |-> 2],
    [event |-> "release"],
    [event |-> "direct", n |-> 2, took |-> TRUE],
    [event |-> "revoke"],
    [event |-> "call", n |-> 3],
    [event |-> "direct", n |-> 3, took |-> FALSE]
>> >>
=============================================================================
