"""MultiMNIST: two overlaid digits, three tasks, every weighting method side by side.

``python -m benchmarks.experiments.multimnist`` trains the same network with each method and prints what each task
reached on digits never seen in training, and what a step costs. Read `model` for the tasks, `train` for the training
step.
"""
