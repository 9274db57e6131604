------------------------------- MODULE Trace -------------------------------
(***************************************************************************)
(* Whether a run is a behaviour of Revocation. A trace holds what a home   *)
(* and its holders did, in the order in which they did it, with the time   *)
(* in between: ticks of each clock, where one hand drove them all          *)
(* (Trace.cfg), or how many milliseconds went by on the one clock that all *)
(* processes of a machine have (Nodes.cfg).                                *)
(*                                                                         *)
(* One question renews all that a node holds, and one answer is given to   *)
(* it: they are an Ask, a Grant and a Take of each capability.             *)
(*                                                                         *)
(* At every event at most one step is possible, so a run is a behaviour    *)
(* exactly if every behaviour of TSpec reaches its end. README lists the   *)
(* events and where the code has them.                                     *)
(***************************************************************************)
EXTENDS MC, Sequences, TraceData, TLC

VARIABLES
    trace,  \* the trace: several are checked at once, each for itself
    i       \* the next event

tvars == <<vars, trace, i>>

Event == Traces[trace][i]
AtEnd == i > Len(Traces[trace])
Is(name) == ~AtEnd /\ Event.event = name

TInit ==
    /\ trace \in 1..Len(Traces)
    /\ i = 1
    /\ Init

Step ==
    /\ i' = i + 1
    /\ UNCHANGED trace
    /\ PrintT(<<"step", trace, i>>)  \* what stands behind the last one is refused

THolder ==
    \/ Is("ask") /\ Ask(Event.c) /\ nonce'[Event.c] = Event.s
    \/ Is("take") /\ Take(Event.c, Event.s)
    \/ Is("use") /\ Use(Event.c)
    \/ Is("idle") /\ lease[Event.c].left = 0 /\ UNCHANGED vars
    \/ Is("hear") /\ Hear(Event.n, Event.x)
    \/ Is("restart_remote") /\ RestartRemote(Event.n)

THome ==
    \/ Is("grant") /\ Grant(Event.c, Event.s)
    \/ Is("revoke") /\ Revoke(Event.x)
    \/ Is("hear_ack") /\ HearAck(Event.n, Event.x)
    \/ Is("return") /\ Return(Event.x)
    \/ Is("restart_home") /\ RestartHome

\* So many rounds of a HomeTick and then a RemoteTick of each node, in one step: TLC takes no
\* behaviour of more than 65,535 states, and a minute has nearly as many milliseconds.
Elapse(k) ==
    /\ \A c \in Lent : ask[c].gain < Skew /\ lease[c].gain < Skew
    /\ ask' = [c \in Lent |->
        IF ask[c].left <= k THEN None ELSE [ask[c] EXCEPT !.left = @ - k]]
    /\ lease' = [c \in Lent |->
        IF lease[c].left <= k THEN Over ELSE [lease[c] EXCEPT !.left = @ - k]]
    /\ owed' = [c \in Lent |-> IF owed[c] <= k THEN 0 ELSE owed[c] - k]
    /\ since' = [x \in Caps |->
        IF x \notin revoked \ returned THEN since[x]
        ELSE IF since[x] + k > Bound THEN Bound ELSE since[x] + k]
    /\ UNCHANGED <<revoked, known, returned, nonce, grants, acks, late>>

TTime ==
    \/ Is("remote_tick") /\ RemoteTick(Event.n)
    \/ Is("home_tick") /\ HomeTick
    \/ Is("elapse") /\ Elapse(Event.k)

TNext == (THolder \/ THome \/ TTime) /\ Step

TSpec == TInit /\ [][TNext]_tvars /\ WF_tvars(TNext)

\* Every event of every trace is a step of the model.
Accepted == <>AtEnd
=============================================================================
