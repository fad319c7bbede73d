"""The one training loop and what it needs; nothing is imported here.

    config      TrainConfig: steps, batch, rate, precision
    loop        fit and train_step: the loop every stage trains with
    optim       optimizers and their parameter groups
    schedule    learning rates as functions of the step
    device      which device and precision, and why
    source      what a stage's data must offer: micro-batches from any step
    run         Run: the output folder, what resumes it, what it announces
    identity    what must agree before a run goes on
    snapshot    resumable checkpoints
    metrics     metrics.jsonl and TensorBoard
    view        what a person sees: a live bar, or plain lines
    signals     SIGINT and SIGTERM end a run between two steps
    diverged    what is kept of a step whose loss or gradient is not finite
"""
