// What every context of a worker begins with: the functions that those of design documents may
// call, and `__divan`, which the worker calls. Whatever a function returns goes out as JSON.

var __divan = (function (global) {
  "use strict";

  var parse = JSON.parse, stringify = JSON.stringify, evaluate = eval;
  var isFrozen = Object.isFrozen, freeze = Object.freeze, keysOf = Object.keys;
  var design = {}, modules = {}, compiled = {};
  var maps = [], reduces = {};
  var rows = [], emitted = false, filtering = false, notes = [];
  var running = "";

  function textOf(error) {
    try {
      if (error && error.name && error.message !== undefined)
        return error.name + ": " + error.message;
      return typeof error === "string" ? error : stringify(error);
    } catch (_) {
      return "an error that cannot be shown";
    }
  }

  function plain(value) {
    if (value instanceof Error) return { error: value.name, message: value.message };
    return value;
  }

  function note(text) {
    if (notes.length < 100) notes.push(text.slice(0, 1000));
  }

  // A failure that ends more than the one call: out of memory, or asked for by the function.
  function isFatal(error) {
    return error === null || error === undefined || error instanceof InternalError
      || error === "fatal_error" || (Array.isArray(error) && error[0] === "fatal");
  }

  function frozen(value) {
    if (typeof value !== "object" || value === null || isFrozen(value)) return value;
    freeze(value);
    var names = keysOf(value);
    for (var i = 0; i < names.length; i++) frozen(value[names[i]]);
    return value;
  }

  // The globals of CouchDB's query server

  global.emit = function (key, value) {
    if (filtering) emitted = true;
    else rows.push([key, plain(value)]);
  };
  global.log = function (message) {
    note(typeof message === "string" ? message : String(stringify(plain(message))));
  };
  global.sum = function (values) {
    var total = 0;
    for (var i in values) total += values[i];
    return total;
  };
  global.isArray = Array.isArray;
  global.toJSON = stringify;

  // Modules: strings in the design document, found by path

  function resolved(names, at, root) {
    for (var i = 0; i < names.length; i++) {
      var name = names[i];
      if (name === ".." || name === ".") {
        for (var up = name === ".." ? 2 : 1; up; up--) {
          if (!at.parent) throw new Error("invalid_require_path: there is nothing above " + at.id);
          at = at.parent;
        }
      } else {
        if (i === 0) at = { current: root, id: "" };
        var next = Object.prototype.hasOwnProperty.call(Object(at.current), name)
          ? at.current[name] : undefined;
        if (next === undefined)
          throw new Error('invalid_require_path: Object has no property "' + name + '".');
        at = { current: next, parent: at, id: at.id ? at.id + "/" + name : name };
      }
    }
    if (typeof at.current !== "string")
      throw new Error("invalid_require_path: Must require a JavaScript string.");
    return at;
  }

  function required(path, from) {
    var at = resolved(String(path).split("/"), from, design);
    var module = modules[at.id];
    if (module === undefined) {
      module = modules[at.id] = { id: at.id, current: at.current, parent: at.parent, exports: {} };
      try {
        evaluate("(function (module, exports, require) { " + at.current + "\n })")
          .call(global, module, module.exports, function (name) { return required(name, at); });
      } catch (error) {
        delete modules[at.id];
        if (isFatal(error)) throw error;
        throw new Error("Module require('" + path + "') raised error " + textOf(error));
      }
    }
    return module.exports;
  }

  global.require = function (path) { return required(path, { current: design, id: "" }); };

  // Functions as they stand in design documents: an expression, perhaps with a semicolon, comments
  // or other functions behind it; or a script whose last value is the function.
  function made(source) {
    var ways = ["(" + source + "\n)", "(function () { var f = " + source + "\n; return f; })()",
                source];
    var first;
    for (var i = 0; i < ways.length; i++) {
      try {
        var value = evaluate(ways[i]);
        if (typeof value === "function") return value;
      } catch (error) {
        if (!(error instanceof SyntaxError)) throw error;
        first = first || error;
      }
    }
    throw first || new SyntaxError("Expression does not eval to a function.");
  }

  function compiledOf(source) {
    if (typeof source !== "string" || !source) throw new SyntaxError("There is no function.");
    return compiled[source] || (compiled[source] = made(source));
  }

  function member(path) {
    var found = design;
    for (var i = 0; i < path.length; i++) found = found[path[i]];
    return found;
  }

  // What the worker calls; `running` says which function it was, if that does not come back

  function mapped(doc) {
    var all = [];
    for (var i = 0; i < maps.length; i++) {
      rows = [];
      running = maps[i][0];
      try {
        maps[i][1](doc);
        all.push(stringify(rows));
      } catch (error) {
        if (isFatal(error)) throw error;
        note("the map function of view " + running + " raised " + textOf(error)
             + " on document " + doc._id);
        all.push("[]");
      }
    }
    // Joined, not added: the engine keeps long sums of strings as trees, which do not go out.
    return ["[", all.join(), "]"].join("");
  }

  function reduced(source, keys, values, again) {
    var f = compiledOf(source);
    try {
      return f(keys, values, again);
    } catch (error) {
      if (isFatal(error)) throw error;
      note("the reduce function raised " + textOf(error));
      return null;
    }
  }

  // A function's own refusal, as CouchDB tells it from a mistake.
  function verdict(f, args) {
    try {
      f.apply(design, args);
      return null;
    } catch (error) {
      if (isFatal(error) || (error && error.name && error.stack)) throw error;
      return error;
    }
  }

  function updated(f, args) {
    var result = f.apply(design, args);
    if (!Array.isArray(result)) throw new TypeError("an update function returns [document, answer]");
    var answer = result[1];
    if (typeof answer === "string") answer = { body: answer };
    return [result[0] === undefined ? null : result[0], answer === undefined ? {} : answer];
  }

  return {
    // The context's program: the design document, or {views: {lib}}; and the maps, [name, source].
    begin: function (text) {
      var program = parse(text);
      design = program.design;
      maps = program.maps.map(function (one) {
        running = one[0];
        return [one[0], compiledOf(one[1])];
      });
      return "";
    },
    map: function (text) { return mapped(frozen(parse(text))); },
    reduce: function (source, keys, values) {
      running = "reduce";
      return stringify([reduced(source, parse(keys), parse(values), false)]);
    },
    rereduce: function (source, values) {
      running = "reduce";
      return stringify([reduced(source, null, parse(values), true)]);
    },
    validate: function (path, text) {
      running = parse(path).join("/");
      return stringify([verdict(compiledOf(member(parse(path))), parse(text))]);
    },
    filter: function (path, text, req) {
      running = parse(path).join("/");
      return stringify(!!compiledOf(member(parse(path))).call(design, parse(text), parse(req)));
    },
    filterByView: function (path, text) {
      running = parse(path).join("/");
      filtering = true;
      emitted = false;
      try {
        compiledOf(member(parse(path)))(parse(text));
        return stringify(emitted);
      } finally {
        filtering = false;
      }
    },
    update: function (path, doc, req) {
      running = parse(path).join("/");
      return stringify(updated(compiledOf(member(parse(path))), [parse(doc), parse(req)]));
    },
    // What was logged since, as JSON; nothing if there is nothing.
    notes: function () {
      if (!notes.length) return "";
      var taken = stringify(notes);
      notes = [];
      return taken;
    },
    running: function () { return running; },
  };
})(globalThis);
