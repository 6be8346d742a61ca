"""Classes to images, cell by cell: any editor with notebooks runs it, and so does `python docs/examples/sampling.py`.

It needs a finished run: `make quickstart` makes one in minutes.
"""

# %% A generator, with the tokenizer on whose tokens it was trained
from foldtrain import Generator

generator = Generator.load("runs/quickstart")
names = generator.class_names
print(f"{len(names)} classes, {generator.image_size} px, {generator.layout.positions} positions")

# %% An image of each class. The same seed gives the same images, whatever is asked for beside them
pictures = generator.sample(names, seed=7, output="pil")
pictures[0].save("first.png")

# %% Image i of a seed follows from i, its class and the settings: the fourth alone is the fourth of all
fourth = generator.sample([names[3]], seed=7, first=3, output="pil")[0]
assert fourth.tobytes() == pictures[3].tobytes()

# %% Guidance draws what is typical of a class; a temperature above 1, what is not
typical = generator.sample([names[0]] * 8, seed=1, guidance=4.0, top_p=0.9)
varied = generator.sample([names[0]] * 8, seed=1, guidance=1.0, temperature=1.2)
print("spread of the pixels:", float(typical.std(axis=0).mean()), float(varied.std(axis=0).mean()))

# %% Tokens first, pixels later: tokens can be stored, compared, and changed
tokens = generator.tokens(names[:2], seed=7)  # int64 [2, positions, folds]
images = generator.images(tokens)  # uint8 [2, S, S, 3]
assert (images == generator.sample(names[:2], seed=7)).all()

# %% The last positions of one image in the place of another's: its finest details change
tokens[0, -generator.layout.groups[-1] :] = tokens[1, -generator.layout.groups[-1] :]
mixed = generator.images(tokens[:1], output="pil")[0]
mixed.save("mixed.png")
