----------------------------- MODULE TraceData -----------------------------
(* An example of what a run generates: a node is lent to, renews, and is    *)
(* told that what its capability was derived from has ended.                *)
EXTENDS Naturals, Sequences

Traces == << <<
    [event |-> "ask", c |-> "b", s |-> 1],
    [event |-> "grant", c |-> "b", s |-> 1],
    [event |-> "take", c |-> "b", s |-> 1],
    [event |-> "use", c |-> "b"],
    [event |-> "home_tick"],
    [event |-> "remote_tick", n |-> "n1"],
    [event |-> "remote_tick", n |-> "n2"],
    [event |-> "ask", c |-> "b", s |-> 2],
    [event |-> "grant", c |-> "b", s |-> 2],
    [event |-> "revoke", x |-> "a"],
    [event |-> "take", c |-> "b", s |-> 2],
    [event |-> "use", c |-> "b"],
    [event |-> "hear", n |-> "n1", x |-> "a"],
    [event |-> "idle", c |-> "b"],
    [event |-> "hear_ack", n |-> "n1", x |-> "a"],
    [event |-> "return", x |-> "a"]
>> >>
=============================================================================
