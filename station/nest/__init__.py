"""The nests: the station's side of each visit. Starts and ends worker processes, answers what they ask, and shows where
each board is. Policy that needs the database or the signer is here; what is done to a board is not.
"""
