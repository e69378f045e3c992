"""stub"""
def missing(): return "not yet"
