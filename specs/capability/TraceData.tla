----------------------------- MODULE TraceData -----------------------------
(* An example of what a run generates. Red's region is lent to blue, who redeems the chain and is
   cut off; the memory service dies; the kernel is killed and boots again. *)
EXTENDS Naturals, Sequences

Full == [rights |-> {"read", "write"}, exp |-> 9, range |-> [from |-> 0, to |-> 9],
         bytes |-> 9, tasks |-> 8, rate |-> 8]
Lent == [Full EXCEPT !.rights = {"read"}, !.exp = 7]

Traces == << <<
    [event |-> "boot", time |-> 1, epoch |-> 1],
    [event |-> "node", time |-> 1, cap |-> 1, epoch |-> 1, parent |-> 0, life |-> "durable",
     object |-> <<"memory", "1/0">>, holder |-> <<"key", "1">>, issuer |-> "none",
     link |-> <<0, 0>>, authority |-> Full, lineage |-> <<1>>],
    [event |-> "node", time |-> 2, cap |-> 2, epoch |-> 1, parent |-> 1, life |-> "memory 1",
     object |-> <<"memory", "1/0">>, holder |-> <<"key", "1">>, issuer |-> "none",
     link |-> <<0, 0>>, authority |-> Full, lineage |-> <<1, 2>>],
    [event |-> "node", time |-> 2, cap |-> 3, epoch |-> 1, parent |-> 1, life |-> "durable",
     object |-> <<"memory", "2/1">>, holder |-> <<"key", "1">>, issuer |-> "none",
     link |-> <<0, 0>>, authority |-> Full, lineage |-> <<1, 3>>],
    [event |-> "node", time |-> 3, cap |-> 4, epoch |-> 1, parent |-> 3, life |-> "durable",
     object |-> <<"memory", "2/1">>, holder |-> <<"key", "1">>, issuer |-> "node",
     link |-> <<0, 1>>, authority |-> Full, lineage |-> <<1, 3, 4>>],
    [event |-> "node", time |-> 3, cap |-> 5, epoch |-> 1, parent |-> 4, life |-> "durable",
     object |-> <<"memory", "2/1">>, holder |-> <<"key", "2">>, issuer |-> "1",
     link |-> <<0, 2>>, authority |-> Lent, lineage |-> <<1, 3, 4, 5>>],
    [event |-> "node", time |-> 3, cap |-> 6, epoch |-> 1, parent |-> 5, life |-> "memory 2",
     object |-> <<"memory", "2/1">>, holder |-> <<"key", "2">>, issuer |-> "none",
     link |-> <<0, 0>>, authority |-> Lent, lineage |-> <<1, 3, 4, 5, 6>>],
    [event |-> "tombstone", time |-> 4, under |-> 4, link |-> <<0, 2>>, until |-> 7],
    [event |-> "revoke", time |-> 4, cap |-> 5, lineage |-> <<1, 3, 4, 5>>, below |-> 1,
     reason |-> "link"],
    [event |-> "vat", time |-> 5, vat |-> "memory", ended |-> 1],
    [event |-> "boot", time |-> 6, epoch |-> 2],
    [event |-> "node", time |-> 6, cap |-> 7, epoch |-> 2, parent |-> 4, life |-> "memory 1",
     object |-> <<"memory", "2/1">>, holder |-> <<"key", "1">>, issuer |-> "none",
     link |-> <<0, 0>>, authority |-> Full, lineage |-> <<1, 3, 4, 7>>],
    [event |-> "session", time |-> 8, life |-> "memory 1", ended |-> 1],
    [event |-> "revoke", time |-> 8, cap |-> 3, lineage |-> <<1, 3>>, below |-> 1,
     reason |-> "object"]
>> >>
=============================================================================
