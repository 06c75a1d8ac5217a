"""A small shop: users, orders and a stock, with receivers that run for the writes of every client.

A dispatcher serves `app`: `dispatcher run examples.shop.app:registry`.
"""
