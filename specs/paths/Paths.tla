------------------------------- MODULE Paths -------------------------------
(***************************************************************************)
(* Over what the processes of a node can speak, and whether the listing of *)
(* an image's paths (`distos image check`) leaves any of it out.           *)
(*                                                                         *)
(* An image says which vats listen, which have a UDP socket, of which it   *)
(* is known that they speak QUIC there, and who holds an edge to whom. The *)
(* kernel starts vats and hands each the ends of channels, and nothing     *)
(* else makes a channel: no vat can open a socket. Vats are killed and     *)
(* start again at any time, and any of them may be taken over.             *)
(*                                                                         *)
(*   kernel ---> vat   calls; new ends of edges; the table                 *)
(*   vat ---> kernel   its log                                             *)
(*   vat ---> vat      an edge                                             *)
(*   programs ---> vat its door                                            *)
(*   the network ---> vat   a UDP socket                                   *)
(*                                                                         *)
(*   N1  there is no path that is unauthenticated or unencrypted           *)
(*                                                                         *)
(* Unix lets whoever speaks over a socket pass on a descriptor. A vat that *)
(* was taken over may pass what it has to another one that was; a vat that *)
(* was not reads bytes and lets go of descriptors that come with them.     *)
(*                                                                         *)
(* Properties speak of who holds which end, never of the plan alone.       *)
(*                                                                         *)
(* Not modelled: what is spoken on a channel, bytes that one vat passes on *)
(* for another, devices and the programs behind them, templates, channels  *)
(* that nobody meant (timing, caches, offsets of shared descriptors).      *)
(***************************************************************************)
EXTENDS Naturals, FiniteSets

CONSTANTS
  Vats,
  MaxStarts,    \* how often vats are started, in all
  MaxPasses     \* how often a descriptor is passed on

VARIABLES
  image,        \* [listens, udp, quic, edges]: as it was booted
  up,           \* the vats that run
  starts,
  ends,         \* {<<channel, side, process>>}: who holds which end of what
  taken,        \* the vats that were taken over
  passes

vars == <<image, up, starts, ends, taken, passes>>

Processes == Vats \cup {"kernel", "programs", "network"}
Kinds     == {"calls", "control", "table", "log", "edge", "door", "udp"}

\* A channel has a kind, and two sides: who begins, and whom it reaches.
Channel(kind, from, to) == <<kind, from, to>>
Channels == Kinds \X Processes \X Processes

Both(channel, from, to) == {<<channel, "from", from>>, <<channel, "to", to>>}

Images ==
  [listens : SUBSET Vats, udp : SUBSET Vats, quic : SUBSET Vats,
   edges : SUBSET {e \in Vats \X Vats : e[1] # e[2]}]

-----------------------------------------------------------------------------
(* What `services/node/src/paths.rs` does with an image.                   *)

\* Every path that an image allows: who can begin to speak to whom, over what.
Listed(i) ==
  UNION {{Channel("calls", "kernel", v), Channel("control", "kernel", v),
          Channel("table", "kernel", v), Channel("log", v, "kernel")} : v \in Vats}
  \cup {Channel("edge", e[1], e[2]) : e \in i.edges}
  \cup {Channel("door", "programs", v) : v \in i.listens}
  \cup {Channel("udp", "network", v) : v \in i.udp}

\* Whether each of them is authenticated and encrypted. A socket is, if it is known what is spoken there.
Protected(i, channel) ==
  channel[1] = "udp" => channel[3] \in i.quic

Boots(i) == \A channel \in Listed(i) : Protected(i, channel)

-----------------------------------------------------------------------------
TypeOK ==
  /\ image \in Images
  /\ up \subseteq Vats /\ taken \subseteq Vats
  /\ starts \in 0..MaxStarts /\ passes \in 0..MaxPasses
  /\ ends \subseteq Channels \X {"from", "to"} \X Processes

Init ==
  /\ image \in Images
  /\ up = {} /\ starts = 0 /\ ends = {} /\ taken = {} /\ passes = 0

\* The kernel's side, with what the image says and nothing else. The other end of an edge goes to a vat that
\* runs already, over its control socket.
Handed(v) ==
  Both(Channel("calls", "kernel", v), "kernel", v)
  \cup Both(Channel("control", "kernel", v), "kernel", v)
  \cup Both(Channel("table", "kernel", v), "kernel", v)
  \cup Both(Channel("log", v, "kernel"), v, "kernel")
  \cup UNION {Both(Channel("edge", e[1], e[2]), e[1], e[2]) :
                e \in {f \in image.edges : v \in {f[1], f[2]} /\ {f[1], f[2]} \subseteq up \cup {v}}}
  \cup (IF v \in image.listens
          THEN Both(Channel("door", "programs", v), "programs", v) ELSE {})
  \cup (IF v \in image.udp
          THEN Both(Channel("udp", "network", v), "network", v) ELSE {})

Start(v) ==
  /\ Boots(image)
  /\ v \notin up /\ starts < MaxStarts
  /\ up' = up \cup {v} /\ starts' = starts + 1
  /\ ends' = ends \cup Handed(v)
  /\ taken' = taken \ {v}
  /\ UNCHANGED <<image, passes>>

\* It is killed: what it held is closed. What it has passed on is not.
Stop(v) ==
  /\ v \in up
  /\ up' = up \ {v}
  /\ ends' = {e \in ends : e[3] # v}
  /\ UNCHANGED <<image, starts, taken, passes>>

TakeOver(v) ==
  /\ v \in up \ taken
  /\ taken' = taken \cup {v}
  /\ UNCHANGED <<image, up, starts, ends, passes>>

\* Whether p and q hold the two ends of a channel.
Over(channel, p, q) ==
  <<channel, "from", p>> \in ends /\ <<channel, "to", q>> \in ends

Speak(p, q) == \E e \in ends : Over(e[1], p, q) \/ Over(e[1], q, p)

\* One that was taken over hands a descriptor to another that was, and keeps it too.
Pass(v, w) ==
  /\ v # w /\ {v, w} \subseteq taken \cap up
  /\ passes < MaxPasses /\ passes' = passes + 1
  /\ Speak(v, w)
  /\ \E e \in ends : e[3] = v /\ ends' = ends \cup {<<e[1], e[2], w>>}
  /\ UNCHANGED <<image, up, starts, taken>>

Next ==
  \/ \E v \in Vats : Start(v) \/ Stop(v) \/ TakeOver(v)
  \/ \E v, w \in Vats : Pass(v, w)

Spec == Init /\ [][Next]_vars

-----------------------------------------------------------------------------
(* Properties.                                                             *)

\* Whatever can be spoken over is on the list, whoever holds it by now.
N1_EveryChannelIsListed ==
  \A e \in ends : e[1] \in Listed(image)

\* A vat that was not taken over is at the end of a path only where the list says so.
N1_WhoIsListedIsThere ==
  \A e \in ends :
    e[3] \in Vats \ taken => e[3] = (IF e[2] = "from" THEN e[1][2] ELSE e[1][3])

\* What a vat that was not taken over and the network say to one another is QUIC.
N1_NothingUnprotected ==
  \A e \in ends :
    (e[1][1] = "udp" /\ e[2] = "to" /\ e[3] \in Vats \ taken) => e[3] \in image.quic

\* Programs of this machine and the network reach only what the image lets them.
N1_OutsideReachesWhatItMay ==
  \A e \in ends :
    /\ e[3] = "programs" => e[1][1] = "door" /\ e[1][3] \in image.listens
    /\ e[3] = "network" => e[1][1] = "udp" /\ e[1][3] \in image.udp

=============================================================================
