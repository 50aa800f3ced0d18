"""Knowledge: clients exchange what their models say or see, not their weights, so that architectures may differ.

Class means of features (FedProto), logits on public data agreed upon by the clients (FedMD), or an ensemble distilled
at the server into one average per architecture (FedDF). Bytes follow from classes, features and public samples; only
FedDF sends weights.
"""
