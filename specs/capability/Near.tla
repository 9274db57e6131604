-------------------------------- MODULE Near --------------------------------
(* The transitions of Replay that few steps and some of the commands lead to. Faults in the code show
   themselves there already: `distos-core` with each of them is compared with these. *)
EXTENDS Replay

CONSTANTS
  Steps,  \* from the empty forest
  Ops     \* commands

(* In place of PrintEach. *)
PrintNear == /\ TLCGet("level") <= Steps
             /\ last'.command.op \in Ops
             /\ PrintEach
=============================================================================
