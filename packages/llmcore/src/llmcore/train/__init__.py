"""The one training loop and what it needs; nothing is imported here.

config      TrainConfig: steps, batch, rate, precision
loop        fit and train_step: the loop every stage trains with
parallel    how several processes share the work: single, ddp, fsdp
distributed the processes of a run, and what they say to each other
ddp         the whole model on every rank
fsdp        the model in parts
tally       what a step adds up over micro-batches and ranks
source      what a stage's data must offer: micro-batches from any step
optim       optimizers and their parameter groups
quick       torch's AdamW and SGD without the start-up cost of torch's compiler
muon        Muon: orthogonal updates of the hidden matrices
ema         an average of the weights, evaluated and kept in their place
precision   the scale of the loss in float16
blocks      how blocks run in training: compiled, computed again in the backward
stopping    when a run ends before its last step
schedule    learning rates as functions of the step
seeds       randomness as a function of the step
device      which device and precision, and why
run         Run: the output folder, what it goes on from, the artifact it becomes
identity    what must agree before a run goes on
resuming    what a folder holds when a command is given
artifact    what a finished run leaves
session     one process's part of a run, from where it stopped
reporter    what is told of it while it goes on, and to whom
verdicts    what its evaluations decide: its end, the checkpoints that stay, the best weights
failures    what is said when a step cannot be taken
snapshot    resumable checkpoints
sharded     those of a model in parts
metrics     metrics.jsonl and TensorBoard
view        what a person sees: a live bar, or plain lines
describe    what the start panel and the end table say
signals     SIGINT and SIGTERM end a run between two steps
memory      what to say when there is not enough
diverged    what is kept of a step whose loss or gradient is not finite
"""
