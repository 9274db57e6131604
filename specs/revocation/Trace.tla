------------------------------- MODULE Trace -------------------------------
(***************************************************************************)
(* Whether a run is a behaviour of Revocation. A trace holds what a home   *)
(* and two holders did, in the order in which they did it, with their      *)
(* clocks' ticks in between: all of them were driven by one hand.          *)
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

TTime ==
    \/ Is("remote_tick") /\ RemoteTick(Event.n)
    \/ Is("home_tick") /\ HomeTick

TNext == (THolder \/ THome \/ TTime) /\ Step

TSpec == TInit /\ [][TNext]_tvars /\ WF_tvars(TNext)

\* Every event of every trace is a step of the model.
Accepted == <>AtEnd
=============================================================================
