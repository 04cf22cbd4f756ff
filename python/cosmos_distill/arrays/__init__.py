"""Reading arrays from files that may come from anyone: the one place where such files are opened.

named       safetensors: headers, tensors, the checksum of the weights, folders of shards
companions  one array of a .safetensors or .npz file: prompt embeddings, noise
torch_files torch checkpoints, mapped, without executing their pickle
pickles     a pickle as inert values: nothing that it names is imported or called
rebuild     arrays and tensors out of such values

Everywhere sizes are read from headers, and compared with the bytes that are there, before memory is asked
for. Nothing that a file names is opened, but the shards that an index lists beside itself. Each reader raises
ValueError naming the file, or OSError where it cannot be opened.
"""
