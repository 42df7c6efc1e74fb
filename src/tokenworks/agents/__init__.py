"""Floor 7, agents: the front door. The OpenAI API, keys presented, streams, and the life of a request from end to end.

Owns what people and agents see. May not price, route or keep books itself: it asks the floors below, in one function.
"""
